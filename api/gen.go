// Package api holds Hearth's interfaces: the protobuf services in hearth/v1
// and the Kubernetes types in v1alpha1.
package api

//go:generate go -C ../tools run ./protogen -dir ../api
