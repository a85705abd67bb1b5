package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"hearth/api/v1alpha1"
)

// TestEveryKeyIsDocumented keeps docs/configuration.md and the examples from
// falling behind the types.
func TestEveryKeyIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	agent, rest, ok := strings.Cut(string(doc), "## controller.yaml")
	controller, client, ok2 := strings.Cut(rest, "## hearthctl")
	if !ok || !ok2 {
		t.Fatal("docs/configuration.md lacks a section")
	}
	for _, s := range []struct {
		text string
		typ  reflect.Type
	}{
		{agent, reflect.TypeFor[Agent]()}, {controller, reflect.TypeFor[Controller]()}, {client, reflect.TypeFor[Client]()},
	} {
		keys := map[string]bool{}
		collectKeys(s.typ, "", keys)
		for k := range keys {
			if !strings.Contains(s.text, "`"+k+"`") {
				t.Errorf("docs/configuration.md does not have `%s` of %s", k, s.typ)
			}
		}
		for _, m := range regexp.MustCompile("(?m)^\\| `([a-zA-Z.]+)`").FindAllStringSubmatch(s.text, -1) {
			if !keys[m[1]] {
				t.Errorf("docs/configuration.md has `%s`, which %s has not", m[1], s.typ)
			}
		}
	}
}

func collectKeys(typ reflect.Type, path string, keys map[string]bool) {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || decodesItself(typ) {
		keys[path] = true
		return
	}
	f := fieldsOf(typ)
	for _, name := range f.names {
		collectKeys(f.types[name], join(path, name), keys)
	}
}

func TestExamplesAreValid(t *testing.T) {
	const dir = "../../deploy/examples/"
	if _, err := LoadAgent(dir+"nodeagent.yaml", testHost()); err != nil {
		t.Error(err)
	}
	if _, err := LoadController(dir+"controller.yaml", testHost()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"class-base.yaml", "class-web.yaml"} {
		if _, err := loadManifests(dir + name); err != nil {
			t.Error(err)
		}
	}
}

func TestTheGroupIsTheOneThatManifestsName(t *testing.T) {
	if got := v1alpha1.GroupVersion().String(); got != v1alpha1.APIVersion {
		t.Errorf("group version = %s, want %s", got, v1alpha1.APIVersion)
	}
}
