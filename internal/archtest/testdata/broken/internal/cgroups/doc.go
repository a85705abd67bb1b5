// Package cgroups hides a fault behind a build tag.
package cgroups
