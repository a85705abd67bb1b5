package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The names under which the API server knows the types of this package.
const (
	Group                = "hearth.run"
	Version              = "v1alpha1"
	APIVersion           = Group + "/" + Version
	KindEnvironmentClass = "EnvironmentClass"
	KindEnvironment      = "Environment"
)

// GroupVersion returns the group and version of every type of this package.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: Version}
}

// AddToScheme makes the types known to s, for clients that decode by scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &EnvironmentClass{}, &EnvironmentClassList{}, &Environment{}, &EnvironmentList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}
