package rules

import (
	"regexp"
	"sync"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// regexes compiles a rule set's patterns once. Patterns are RE2: their cost is
// linear in the text.
type regexes struct {
	mu       sync.Mutex
	compiled map[string]*regexp.Regexp // guarded by mu
}

// maxRegexes bounds the cache for a condition that computes its pattern.
const maxRegexes = 256

func (r *regexes) get(pattern string) (*regexp.Regexp, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if re := r.compiled[pattern]; re != nil {
		return re, nil
	}
	re, err := regexp.Compile(pattern)
	if err == nil && len(r.compiled) < maxRegexes {
		r.compiled[pattern] = re
	}
	return re, err
}

// like is message.like(path, pattern): some string at path matches.
func (r *regexes) like(args ...ref.Val) ref.Val {
	re, err := r.get(string(args[2].(types.String)))
	if err != nil {
		return types.WrapErr(err)
	}
	return types.Bool(args[0].(messageVal).m.any(string(args[1].(types.String)), re.MatchString))
}
