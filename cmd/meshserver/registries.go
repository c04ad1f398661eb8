package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/consul"
	"github.com/isthmus-mesh/isthmus/bridges/zookeeper"
	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
)

// source makes the bridge of one registry. It reports every mistake at once.
func source(sh *process.Shell, r Registry) (bridges.Source, error) {
	log := sh.Log.With("registry", r.Name)
	if z := r.ZooKeeper; z != nil {
		cfg := zookeeper.Config{
			Name: r.Name, Servers: z.Servers, DubboRoots: z.DubboRoots, SpringRoots: z.SpringRoots, Namespace: z.Namespace,
			SessionTimeout: z.SessionTimeout, ServicePorts: z.ServicePorts, Log: log,
		}
		var wrong error
		if z.DigestFile != "" {
			credential, err := secretFile(z.DigestFile)
			if err != nil {
				wrong = fmt.Errorf("digestFile: %w", err)
			} else {
				cfg.Auth = []zookeeper.Auth{{Scheme: "digest", Credential: credential}}
			}
		}
		s, err := zookeeper.New(cfg)
		return s, errors.Join(wrong, err)
	}
	c := r.Consul
	cfg := consul.Config{
		Name: r.Name, Addresses: c.Addresses, Datacenters: c.Datacenters, Consistency: c.Consistency, Tags: c.Tags, Meta: c.Meta,
		HostTemplate: c.HostTemplate, Namespace: c.Namespace, Protocol: c.Protocol, Wait: c.Wait, Log: log, Registerer: sh.Registry,
	}
	if c.Address != "" {
		cfg.Addresses = append([]string{c.Address}, c.Addresses...)
	}
	var wrong []error
	if c.TokenFile != "" {
		token, err := secretFile(c.TokenFile)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("tokenFile: %w", err))
		}
		cfg.Token = consul.Secret(token)
	}
	var err error
	if cfg.TLS, err = tlsConfig(c); err != nil {
		wrong = append(wrong, err)
	}
	s, err := consul.New(cfg)
	return s, errors.Join(append(wrong, err)...)
}

// secretFile reads a credential that only its owner may read.
func secretFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", fmt.Errorf("%s: mode %04o lets others read a secret; chmod 0400 it", path, mode)
	}
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err
}

// tlsConfig is nil when the file says nothing about TLS.
func tlsConfig(c *Consul) (*tls.Config, error) {
	if c.CAFile == "" && c.CertFile == "" && c.ServerName == "" {
		return nil, nil
	}
	var wrong []error
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		cfg.RootCAs = x509.NewCertPool()
		if err != nil {
			wrong = append(wrong, fmt.Errorf("caFile: %w", err))
		} else if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			wrong = append(wrong, fmt.Errorf("caFile: %s: holds no certificate in PEM", c.CAFile))
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("certFile %s, keyFile %s: %w", c.CertFile, c.KeyFile, err))
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, errors.Join(wrong...)
}
