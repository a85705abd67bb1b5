package env

// ServiceAccount is a caller whom the cluster vouches for by a token.
type ServiceAccount struct {
	Namespace string // the tenant that it belongs to
	Name      string
	UID       string // another account that takes the name has another one
}

// Username is how the API server calls it.
func (a ServiceAccount) Username() string {
	return "system:serviceaccount:" + a.Namespace + ":" + a.Name
}

// Groups are those that the API server puts every service account into.
func (a ServiceAccount) Groups() []string {
	return []string{"system:serviceaccounts", "system:serviceaccounts:" + a.Namespace, "system:authenticated"}
}
