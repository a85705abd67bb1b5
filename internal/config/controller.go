package config

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Controller is controller.yaml.
type Controller struct {
	// Instance names what this controller owns.
	Instance string `json:"instance"`
	// StateDir has the database, the certificate authority and the defaults of
	// the files below.
	StateDir string        `json:"stateDir"`
	API      ControllerAPI `json:"api"`
	// KeysFile has the callers' API keys; see LoadAPIKeys.
	KeysFile string `json:"keysFile"`
	// JoinTokenFile has the token by which agents join.
	JoinTokenFile string `json:"joinTokenFile"`
	Fleet         Fleet  `json:"fleet"`
	// Kubernetes, if it is present, is where the controller keeps its state and
	// finds classes and nodes; stateDir, keysFile and joinTokenFile then hold
	// nothing. It must be written to be: "kubernetes: {}" has all defaults.
	Kubernetes *Kubernetes `json:"kubernetes,omitempty"`
	Log        Log         `json:"log"`
	Tracing    Tracing     `json:"tracing"`
}

// ControllerAPI is where the controller listens.
type ControllerAPI struct {
	// Listen is the TCP address of the Environments and Fleet APIs, TLS always.
	Listen string `json:"listen"`
	// Names are the host names and addresses in the server's certificate.
	Names []string `json:"names"`
	// Metrics is the address of /metrics, /healthz and /readyz.
	Metrics string `json:"metrics"`
}

// Fleet is how the controller watches its agents.
type Fleet struct {
	// Heartbeat is the interval that agents are told.
	Heartbeat metav1.Duration `json:"heartbeat"`
	// LostAfter without a heartbeat gives a node no more claims.
	LostAfter metav1.Duration `json:"lostAfter"`
	// FenceAfter the sending of its last answered report a node freezes and locks
	// its environments. Negative is never.
	FenceAfter metav1.Duration `json:"fenceAfter"`
	// PlaceAfter the last report of a node its environments are failed.
	PlaceAfter metav1.Duration `json:"placeAfter"`
}

// Kubernetes is how the controller lives in a cluster.
type Kubernetes struct {
	// Kubeconfig is for a controller outside of the cluster; default is the pod's
	// service account.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Namespace is the controller's, AgentNamespace that of agents and hold pods.
	Namespace      string `json:"namespace"`
	AgentNamespace string `json:"agentNamespace"`
	// AgentAccount is the service account of the agents.
	AgentAccount string `json:"agentAccount"`
	// Lease is held by the one controller that leads.
	Lease string `json:"lease"`
	// Service reaches the leader; its names are in the server's certificate.
	Service string  `json:"service"`
	Webhook Webhook `json:"webhook"`
	Hold    Hold    `json:"hold"`
	// Pod is the one that the process runs in. It is in no file.
	Pod Pod `json:"-"`
}

// Webhook is asked by the API server before a hold pod is evicted.
type Webhook struct {
	Listen string `json:"listen"`
	// Configuration is the ValidatingWebhookConfiguration that gets the authority's
	// certificate.
	Configuration string `json:"configuration"`
}

// Hold describes the pods that keep the nodes' books: each holds what the
// environments of its node may use.
type Hold struct {
	// Disabled leaves the scheduler without knowledge of what environments use.
	Disabled bool   `json:"disabled"`
	Image    string `json:"image"`
	// Memory and CPU of nodes without the labels hearth.run/memory and
	// hearth.run/cpu.
	Memory        Share  `json:"memory"`
	CPU           Share  `json:"cpu"`
	PriorityClass string `json:"priorityClass"`
}

// LoadController reads controller.yaml. Errors as LoadAgent's.
func LoadController(path string, host Host) (Controller, error) {
	var c Controller
	if err := loadFile(path, &c); err != nil {
		return Controller{}, err
	}
	c = defaultController(c, host)
	return c, wrapFaults(path, c.validate())
}

// DefaultController is what an empty file means on host.
func DefaultController(host Host) Controller { return defaultController(Controller{}, host) }

// Validate checks a Controller that did not come from LoadController.
func (c Controller) Validate() error { return wrapFaults("controller settings", c.validate()) }
