package config

import (
	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

func hygieneOf(h v1alpha1.Hygiene) env.HygienePolicy {
	var out env.HygienePolicy
	for _, t := range h.Keep {
		out.Keep = append(out.Keep, env.Trait(t))
	}
	return out
}

func checkHygiene(l *faultList, h v1alpha1.Hygiene) {
	words := make([]string, len(env.Traits))
	for i, t := range env.Traits {
		words[i] = string(t)
	}
	seen := map[v1alpha1.Trait]bool{}
	for i, t := range h.Keep {
		at := index("spec.hygiene.keep", i)
		l.oneOf(at, string(t), words...)
		if seen[t] {
			l.addf(at, "%s is there twice", t)
		}
		seen[t] = true
	}
}
