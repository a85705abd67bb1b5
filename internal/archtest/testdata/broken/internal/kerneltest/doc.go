// Package kerneltest is for tests.
package kerneltest
