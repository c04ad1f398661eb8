package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Envoy is the real Envoy; its one file is "envoy".
func Envoy() Part { return Part{Name: "envoy", Version: "1.40.0"} }

// Consul is a Consul agent; its one file is "consul". tools/consul/go.mod pins
// the same version.
func Consul() Part { return Part{Name: "consul", Version: "1.20.1"} }

// Grpcurl is a gRPC client for the command line; its one file is "grpcurl".
// tools/grpcurl/go.mod pins the same version.
func Grpcurl() Part { return Part{Name: "grpcurl", Version: "1.9.4"} }

// Protoc is the Protobuf compiler, as a Python environment:
// bin/python -m grpc_tools.protoc.
func Protoc() Part { return Part{Name: "protoc", Version: "1.85.1"} }

// Linter is golangci-lint; its one file is "golangci-lint". tools/lint/go.mod
// pins the same version. It refuses sources newer than the Go that built it,
// so the Go version is part of the key.
func Linter() Part { return Part{Name: "golangci-lint", Version: "2.15.0-" + runtime.Version()} }

// Java is what testenv/java builds: ZooKeeper and the Java applications, a
// folder for each module with "classes" (where it has any) and "lib". Its
// version is a hash of the project's files.
func Java() (Part, error) {
	repo, err := Repository()
	if err != nil {
		return Part{}, err
	}
	version, err := hashFolder(filepath.Join(repo, "testenv", "java"))
	if err != nil {
		return Part{}, fmt.Errorf("hash testenv/java: %w", err)
	}
	return Part{Name: "java", Version: version}, nil
}

// hashFolder returns a short hash of the names and bytes of the POMs and Java
// sources under dir.
func hashFolder(dir string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ext := filepath.Ext(path); entry.IsDir() || ext != ".java" && ext != ".xml" {
			return nil
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(sum, "%s\n", filepath.ToSlash(name)) // a hash never fails
		size, err := io.Copy(sum, file)
		_, _ = fmt.Fprintf(sum, "\n%d\n", size)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil))[:12], err
}
