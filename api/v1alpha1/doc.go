// Package v1alpha1 holds Hearth's Kubernetes types, group hearth.run. The same
// manifests configure a node without Kubernetes: internal/config decodes both
// into the vocabulary of internal/env, and nothing else reads these types.
//
// The markers below the comments are the schema of the CRDs. Where a rule
// cannot be said by a schema it is in internal/config, which checks everything
// again: a manifest in a directory has met no API server.
//
// +kubebuilder:object:generate=true
// +groupName=hearth.run
package v1alpha1
