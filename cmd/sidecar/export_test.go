package main

// Main is main, for scripts.
var Main = main
