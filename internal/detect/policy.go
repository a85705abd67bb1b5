package detect

import "hearth/internal/env"

// The findings that the engine itself makes. None may cause more than an alert.
const (
	// ruleFlood: a slot made more events than its budget; the excess was shed.
	ruleFlood = "sensor.flood"
	// ruleMismatch: the veth and the process behind a flow name different
	// environments: evidence of an escape.
	ruleMismatch = "attribution.mismatch"
	// ruleConflict: a sender wrote other bytes over ones it had sent, as
	// evasions of inspection do.
	ruleConflict = "flow.conflict"
)

// strength orders the responses.
func strength(r env.Response) int {
	switch r {
	case env.ResponseRecord:
		return 0
	case env.ResponseFreeze:
		return 2
	default:
		return 1
	}
}

// choose is what the class says of the severity, but never more than ceiling.
func choose(p env.DetectionPolicy, s env.Severity, ceiling env.Response) env.Response {
	want := env.Response(p.Responses[string(s)])
	if want == "" {
		want = env.ResponseAlert
	}
	if strength(want) > strength(ceiling) {
		return ceiling
	}
	return want
}
