package kubetest

import (
	"fmt"
	"os"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// made lets an object be there already.
func (s *Server) made(err error) {
	s.t.Helper()
	if !apierrors.IsAlreadyExists(err) {
		s.check(err)
	}
}

// Account makes a service account and its namespace.
func (s *Server) Account(namespace, name string) {
	s.t.Helper()
	_, err := s.api.CoreV1().Namespaces().Create(s.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	s.made(err)
	_, err = s.api.CoreV1().ServiceAccounts(namespace).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	s.made(err)
}

// Node makes a node, of which there is nothing but the object.
func (s *Server) Node(name string) {
	s.t.Helper()
	_, err := s.api.CoreV1().Nodes().Create(s.t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	s.made(err)
}

// Pod makes a pod of the account on the node.
func (s *Server) Pod(namespace, name, account, node string) {
	s.t.Helper()
	_, err := s.api.CoreV1().Pods(namespace).Create(s.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: account, AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{Name: "c", Image: "none"}},
		},
	}, metav1.CreateOptions{})
	s.check(err)
}

// DeletePod deletes it at once.
func (s *Server) DeletePod(namespace, name string) {
	s.t.Helper()
	s.check(s.api.CoreV1().Pods(namespace).Delete(s.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}))
}

// Bound says what a token lives and dies with. The zero value is nothing.
type Bound struct{ Kind, Name string } // "Pod" or "Node"

// Token asks the API server for a token of the account, for an hour.
func (s *Server) Token(namespace, account, audience string, to Bound) string {
	s.t.Helper()
	seconds := int64(time.Hour / time.Second)
	r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if audience != "" {
		r.Spec.Audiences = []string{audience}
	}
	if to != (Bound{}) {
		r.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: to.Kind, Name: to.Name}
	}
	answer, err := s.api.CoreV1().ServiceAccounts(namespace).CreateToken(s.t.Context(), account, r, metav1.CreateOptions{})
	s.check(err)
	return answer.Status.Token
}

// Grant lets the account do verbs to environments in the namespace.
func (s *Server) Grant(namespace, accountNamespace, account string, verbs ...string) {
	s.t.Helper()
	name := accountNamespace + "-" + account
	_, err := s.api.RbacV1().Roles(namespace).Create(s.t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"hearth.run"}, Resources: []string{"environments"}, Verbs: verbs}},
	}, metav1.CreateOptions{})
	s.check(err)
	_, err = s.api.RbacV1().RoleBindings(namespace).Create(s.t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: accountNamespace, Name: account}},
	}, metav1.CreateOptions{})
	s.check(err)
}

// Revoke takes back what Grant gave.
func (s *Server) Revoke(namespace, accountNamespace, account string) {
	s.t.Helper()
	s.check(s.api.RbacV1().RoleBindings(namespace).Delete(s.t.Context(), accountNamespace+"-"+account, metav1.DeleteOptions{}))
}

// Controller is a kubeconfig of a controller's service account that may do no
// more than tell callers and agents apart.
func (s *Server) Controller() (kubeconfig string) {
	s.t.Helper()
	const namespace, name = "hearth-system", "hearth-controller"
	s.Account(namespace, name)
	_, err := s.api.RbacV1().ClusterRoles().Create(s.t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
			{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
			{NonResourceURLs: []string{"/openid/v1/jwks", "/.well-known/openid-configuration"}, Verbs: []string{"get"}},
		},
	}, metav1.CreateOptions{})
	s.check(err)
	_, err = s.api.RbacV1().ClusterRoleBindings().Create(s.t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}},
	}, metav1.CreateOptions{})
	s.check(err)
	return s.kubeconfig(fmt.Sprintf("%s-%s", namespace, name), s.Token(namespace, name, "", Bound{}))
}

func (s *Server) kubeconfig(user, token string) string {
	s.t.Helper()
	c := clientcmdapi.NewConfig()
	c.Clusters["c"] = &clientcmdapi.Cluster{Server: s.url, CertificateAuthorityData: s.ca}
	c.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: user}
	c.CurrentContext = "x"
	path := s.path(user + ".kubeconfig")
	s.check(clientcmd.WriteToFile(*c, path))
	s.check(os.Chmod(path, 0o600))
	return path
}

// Agent is what a pod of the agents' service account finds in its directory, and
// the API server's address. The account may read the controller's lease alone.
func (s *Server) Agent() (url, dir string) {
	s.t.Helper()
	const system, nodes, name, lease = "hearth-system", "hearth-nodes", "hearth-nodeagent", "hearth-controller"
	s.Account(nodes, name)
	s.Account(system, "hearth-controller")
	_, err := s.api.RbacV1().Roles(system).Create(s.t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{lease}, Verbs: []string{"get"}}},
	}, metav1.CreateOptions{})
	s.check(err)
	_, err = s.api.RbacV1().RoleBindings(system).Create(s.t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: nodes, Name: name}},
	}, metav1.CreateOptions{})
	s.check(err)
	s.check(os.Mkdir(s.path("pod"), 0o700))
	s.write("pod/token", []byte(s.Token(nodes, name, "", Bound{})))
	s.write("pod/ca.crt", s.ca)
	return s.url, s.path("pod")
}

// Lease makes, or changes, one that holder has. An empty holder is nobody.
func (s *Server) Lease(namespace, name, holder string, annotations map[string]string) {
	s.t.Helper()
	leases := s.api.CoordinationV1().Leases(namespace)
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}}
	_, err := leases.Create(s.t.Context(), l, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		have, err := leases.Get(s.t.Context(), name, metav1.GetOptions{})
		s.check(err)
		l.ResourceVersion = have.ResourceVersion
		_, err = leases.Update(s.t.Context(), l, metav1.UpdateOptions{})
		s.check(err)
		return
	}
	s.check(err)
}

// Admin is the path of a kubeconfig that may do everything.
func (s *Server) Admin() string {
	s.t.Helper()
	return s.kubeconfig("admin", adminToken)
}
