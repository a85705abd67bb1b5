package v1alpha1

//go:generate go tool -modfile=../../tools/go.mod controller-gen object paths=.
