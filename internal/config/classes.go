package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// LoadClasses reads every *.yaml, *.yml and *.json file of dir, each with one
// or more EnvironmentClass manifests, and returns the classes sorted by name.
// Names that begin with a dot are skipped (Kubernetes keeps its own there).
// The faults of all files are in the error; see LoadAgent.
func LoadClasses(dir string) ([]env.Class, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, fmt.Errorf("read classes: %w: make the directory or set classesDir", err)
	}
	var all []classSource
	var errs []error
	for _, e := range entries {
		if !isManifest(e.Name()) {
			continue
		}
		got, err := loadManifests(filepath.Join(dir, e.Name()))
		all = append(all, got...)
		errs = append(errs, err)
	}
	errs = append(errs, duplicateNames(all))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	classes := make([]env.Class, len(all))
	for i, s := range all {
		classes[i] = s.class
	}
	slices.SortFunc(classes, func(a, b env.Class) int { return strings.Compare(a.Name, b.Name) })
	return classes, nil
}

// DecodeClass reads one manifest in JSON, as the cluster stores it, by the rules
// of LoadClasses. What the cluster itself writes, most of metadata and all of
// status, is not looked at.
func DecodeClass(data []byte) (env.Class, error) {
	var stored struct {
		metav1.TypeMeta
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Spec json.RawMessage `json:"spec,omitempty"`
	}
	if len(data) > maxFileBytes {
		return env.Class{}, fmt.Errorf("%w: manifest of %d bytes, at most %d", env.ErrInvalid, len(data), maxFileBytes)
	}
	if err := json.Unmarshal(data, &stored); err != nil {
		return env.Class{}, fmt.Errorf("%w: manifest: %w", env.ErrInvalid, err)
	}
	text, err := json.Marshal(stored)
	if err != nil {
		return env.Class{}, fmt.Errorf("%w: manifest: %w", env.ErrInvalid, err)
	}
	c, faults := decodeClass(document{line: 1, text: text})
	return c, wrapFaults("class "+strconv.Quote(stored.Metadata.Name), faults)
}

// ClassOf converts one manifest: defaults, validation, revision. The revision
// is the SHA-256 of the canonical specification without its warm policy, so
// that resizing a pool does not discard its slots. Errors match
// env.ErrInvalid and have every fault.
func ClassOf(m *v1alpha1.EnvironmentClass) (env.Class, error) {
	c, faults := classOf(m)
	return c, wrapFaults("class "+m.Name, faults)
}

// classSource is a class and where it was read.
type classSource struct {
	class env.Class
	file  string
	line  int
}

func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	default:
		return false
	}
}

func loadManifests(path string) ([]classSource, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	var out []classSource
	var errs []error
	for _, d := range splitDocuments(data) {
		c, faults := decodeClass(d)
		if len(faults) > 0 {
			errs = append(errs, wrapFaults(path, faults))
			continue
		}
		out = append(out, classSource{class: c, file: path, line: d.line})
	}
	return out, errors.Join(errs...)
}

// decodeClass decodes one document. Its kind is looked at first, so that
// another kind is one fault and not one for each of its keys.
func decodeClass(d document) (env.Class, []fault) {
	root, faults := parse(d)
	if len(faults) > 0 {
		return env.Class{}, faults
	}
	var meta metav1.TypeMeta
	for i := 0; i+1 < len(root.Content); i += 2 {
		switch root.Content[i].Value {
		case "apiVersion":
			meta.APIVersion = root.Content[i+1].Value
		case "kind":
			meta.Kind = root.Content[i+1].Value
		}
	}
	if meta.APIVersion != v1alpha1.APIVersion || meta.Kind != v1alpha1.KindEnvironmentClass {
		return env.Class{}, []fault{{line: d.line, text: fmt.Sprintf("want apiVersion %s and kind %s, have %.64q and %.64q",
			v1alpha1.APIVersion, v1alpha1.KindEnvironmentClass, meta.APIVersion, meta.Kind)}}
	}
	var m v1alpha1.EnvironmentClass
	if faults := decode(d, &m); len(faults) > 0 {
		return env.Class{}, faults
	}
	c, faults := classOf(&m)
	locate(faults, root, d.line-1)
	return c, faults
}

func duplicateNames(all []classSource) error {
	first := make(map[string]classSource, len(all))
	var errs []error
	for _, s := range all {
		if f, ok := first[s.class.Name]; ok {
			errs = append(errs, fmt.Errorf("%s:%d: %w: class %s is defined already in %s:%d",
				s.file, s.line, env.ErrInvalid, s.class.Name, f.file, f.line))
			continue
		}
		first[s.class.Name] = s
	}
	return errors.Join(errs...)
}
