//go:build e2e

package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"hearth/internal/kube/kubetest"
)

// TestMain gives all tests one API server: that of KUBECONFIG, or one of their own.
func TestMain(m *testing.M) {
	if os.Getenv("KUBECONFIG") != "" || os.Getenv(kubetest.BinVar) == "" {
		os.Exit(m.Run()) // without either, those that need one skip
	}
	t := &process{}
	code := func() int {
		defer t.end()
		s := kubetest.Start(t)
		if err := os.Setenv("KUBECONFIG", s.Admin()); err != nil {
			t.Fatal(err)
		}
		if err := applyCRDs(); err != nil {
			t.Fatal(err)
		}
		return m.Run()
	}()
	os.Exit(code)
}

// process stands for the tests of this process together.
type process struct {
	testing.TB
	cleanups []func()
}

func (p *process) Helper()                         {}
func (p *process) Failed() bool                    { return false }
func (p *process) Context() context.Context        { return context.Background() }
func (p *process) Cleanup(f func())                { p.cleanups = append(p.cleanups, f) }
func (p *process) Fatal(args ...any)               { panic(fmt.Sprint(args...)) }
func (p *process) Fatalf(format string, a ...any)  { panic(fmt.Sprintf(format, a...)) }
func (p *process) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (p *process) TempDir() string {
	dir, err := os.MkdirTemp("", "hearth-kube-")
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (p *process) end() {
	for i := len(p.cleanups) - 1; i >= 0; i-- {
		p.cleanups[i]()
	}
}

// applyCRDs makes those of deploy/crds, and waits until they are served.
func applyCRDs() error {
	c, err := Open(testConfig())
	if err != nil {
		return err
	}
	files, err := filepath.Glob("../../deploy/crds/hearth.run_*.yaml")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no CRDs: %w", err)
	}
	api := c.core.CoreV1().RESTClient()
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		body, err := yaml.YAMLToJSON(text)
		if err != nil {
			return err
		}
		err = api.Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").SetHeader("Content-Type", "application/json").Body(body).Do(context.Background()).Error()
		if err != nil {
			return err
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		_, err1 := c.classes.List(context.Background(), metav1.ListOptions{})
		_, err2 := c.environments("").List(context.Background(), metav1.ListOptions{})
		if err1 == nil && err2 == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("CRDs are not served: %w, %w", err1, err2)
		}
	}
}
