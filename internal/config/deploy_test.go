package config

import "testing"

// What the manifests of deploy/ mount must be what the programs read.
func TestTheClustersConfigurationIsValid(t *testing.T) {
	agent, err := LoadAgent("../../deploy/daemonset/nodeagent.yaml", testHost())
	if err != nil {
		t.Fatal(err)
	}
	if agent.Controller == nil || agent.Controller.Kubernetes == nil {
		t.Error("agents do not look for their controller in the cluster")
	}
	if agent.API.Metrics != ":7402" || agent.API.Listen != ":7401" {
		t.Errorf("agents listen on %s and %s; deploy/ says 7401 and 7402", agent.API.Listen, agent.API.Metrics)
	}
	controller, err := LoadController("../../deploy/controller/controller.yaml", testHost())
	if err != nil {
		t.Fatal(err)
	}
	k := controller.Kubernetes
	if k == nil {
		t.Fatal("the controller does not keep its state in the cluster")
	}
	for name, got := range map[string][2]string{
		"namespace":       {k.Namespace, "hearth-system"},
		"agent namespace": {k.AgentNamespace, "hearth-nodes"},
		"agent account":   {k.AgentAccount, "hearth-nodeagent"},
		"lease":           {k.Lease, "hearth-controller"},
		"service":         {k.Service, "hearth-controller"},
		"webhook":         {k.Webhook.Configuration, "hearth-drain"},
		"webhook port":    {k.Webhook.Listen, ":7403"},
		"priority class":  {k.Hold.PriorityClass, "hearth-hold"},
		"api":             {controller.API.Listen, ":7400"},
		"metrics":         {controller.API.Metrics, ":7402"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %q, in deploy/ it is %q", name, got[0], got[1])
		}
	}
}
