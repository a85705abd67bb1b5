package rules

import (
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"hearth/internal/env"
)

// Version is the version of the rule and fixture files.
const Version = 1

var errNoConversion = errors.New("a message has no Go form")

// file is a rule file.
type file struct {
	Version int    `json:"version"`
	Rules   []spec `json:"rules"`
}

// spec is a rule as it is written.
type spec struct {
	Name        string       `json:"name"` // "mining.stratum_v1"
	Description string       `json:"description"`
	Severity    env.Severity `json:"severity"`
	Event       Kind         `json:"event"`
	Condition   string       `json:"condition"`
	// Detail is an expression that gives the text of the finding.
	Detail string `json:"detail,omitempty"`
	// Response is the strongest response that this rule may cause; empty is
	// freeze. What is done is chosen by the class for the severity.
	Response env.Response `json:"response,omitempty"`
	// Disabled rules are checked like all others and match nothing.
	Disabled bool `json:"disabled,omitempty"`
}

// Rule is a compiled rule.
type Rule struct {
	spec
	condition, detail cel.Program
	errors            atomic.Uint64
}

// Name is the rule's name.
func (r *Rule) Name() string { return r.spec.Name }

// Severity is the rule's severity.
func (r *Rule) Severity() env.Severity { return r.spec.Severity }

// Ceiling is the strongest response that the rule may cause.
func (r *Rule) Ceiling() env.Response { return r.Response }

// Errors counts evaluations that ended in an error, which is no match.
func (r *Rule) Errors() uint64 { return r.errors.Load() }

var ruleName = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`)

// check finds every fault of a spec that needs no compiler.
func (s *spec) check() error {
	var errs []error
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: rule %.64q: %s", env.ErrInvalid, s.Name, fmt.Sprintf(format, args...)))
	}
	if !ruleName.MatchString(s.Name) || len(s.Name) > 64 {
		wrong("name is not of the form group.name in lower case")
	}
	switch s.Severity {
	case env.SeverityLow, env.SeverityMedium, env.SeverityHigh, env.SeverityCritical:
	default:
		wrong("severity %q is not low, medium, high or critical", s.Severity)
	}
	switch s.Response {
	case env.ResponseRecord, env.ResponseAlert, env.ResponseFreeze:
	case "":
		s.Response = env.ResponseFreeze
	default:
		wrong("response %q is not record, alert or freeze", s.Response)
	}
	switch s.Event {
	case KindPayload, KindExec, KindConnect:
	default:
		wrong("event %q is not payload, exec or connect", s.Event)
	}
	if s.Description == "" {
		wrong("description is missing")
	}
	return errors.Join(errs...)
}

// compile type-checks a spec's expressions.
func (s spec) compile(envs map[Kind]*cel.Env) (*Rule, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	r := &Rule{spec: s}
	var err error
	if r.condition, err = program(envs[s.Event], s.Condition, cel.BoolType); err != nil {
		return nil, fmt.Errorf("%w: rule %q: condition: %w", env.ErrInvalid, s.Name, err)
	}
	if s.Detail == "" {
		return r, nil
	}
	if r.detail, err = program(envs[s.Event], s.Detail, cel.StringType); err != nil {
		return nil, fmt.Errorf("%w: rule %q: detail: %w", env.ErrInvalid, s.Name, err)
	}
	return r, nil
}

func program(e *cel.Env, expr string, want *cel.Type) (cel.Program, error) {
	ast, issues := e.Compile(expr)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	if !ast.OutputType().IsExactType(want) {
		return nil, fmt.Errorf("gives %s, not %s", ast.OutputType(), want)
	}
	return e.Program(ast, cel.CostLimit(costLimit), cel.EvalOptions(cel.OptOptimize))
}

// match asks the rule about ev, which is of its kind.
func (r *Rule) match(vars map[string]any) bool {
	out, _, err := r.condition.Eval(vars)
	if err != nil {
		r.errors.Add(1)
		return false
	}
	return out == types.True
}

// describe gives the detail of a match; a detail that fails is left out.
func (r *Rule) describe(vars map[string]any) string {
	if r.detail == nil {
		return ""
	}
	out, _, err := r.detail.Eval(vars)
	if err != nil {
		r.errors.Add(1)
		return ""
	}
	text, _ := out.Value().(string)
	if len(text) > 2*maxDetail {
		text = text[:2*maxDetail]
	}
	return text
}
