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
	Log           Log    `json:"log"`
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
