// Package controllerapi serves the controller's services over internal/fleet:
// Environments to callers with an API key, Fleet to agents with a certificate
// (or, to join, a token), Admin to root on the controller's Unix socket.
//
// It checks who calls and the form of what comes; every decision is fleet's.
package controllerapi
