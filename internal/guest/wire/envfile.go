package wire

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Files of an environment's identity, below /run/hearth. The node writes both
// before the thaw, each whole (temporary file, then rename).
const (
	RunDir      = "/run/hearth"
	EnvFile     = RunDir + "/env"      // for people and shells: lines of NAME='value'
	EnvJSONFile = RunDir + "/env.json" // exact: {"NAME": "value"}; envinit reads this one
	LogDir      = RunDir + "/log"      // services' output; see LogBudget
)

// LogBudget bounds all that envinit writes below LogDir, in bytes: half of
// the tmpfs at RunDir (1 MiB), so that the identity always has room.
const LogBudget = 512 << 10

// Bounds of variables: a string of execve is at most 128 KiB
// (MAX_ARG_STRLEN), and all of them must fit a request.
const (
	MaxVariable  = 64 << 10
	MaxVariables = 512 << 10
)

// CheckVariables refuses what execve cannot pass on, and excess.
func CheckVariables(vars map[string]string) error {
	total := 0
	for name, value := range vars {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return fmt.Errorf("variable name %.64q is empty or holds an equals sign or a zero byte", name)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("value of variable %s holds a zero byte", name)
		}
		if n := len(name) + len(value); n > MaxVariable {
			return fmt.Errorf("variable %.64s has %d bytes, at most %d are possible", name, n, MaxVariable)
		}
		total += len(name) + len(value) + 2
	}
	if total > MaxVariables {
		return fmt.Errorf("variables have %d bytes together, at most %d are possible", total, MaxVariables)
	}
	return nil
}

// DecodeEnv reads the content of EnvJSONFile.
func DecodeEnv(content []byte) (map[string]string, error) {
	var vars map[string]string
	if err := json.Unmarshal(content, &vars); err != nil {
		return nil, fmt.Errorf("decode %s: %w", EnvJSONFile, err)
	}
	if err := CheckVariables(vars); err != nil {
		return nil, fmt.Errorf("decode %s: %w", EnvJSONFile, err)
	}
	return vars, nil
}
