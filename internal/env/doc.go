// Package env is Hearth's vocabulary: the words that every other package
// speaks. It holds ids, classes, phases, limits, egress policy, reason words
// and sentinel errors, and imports the standard library only.
//
// An environment is one isolated Linux machine for one session. A slot is a
// prepared container that belongs to nobody yet; a claim turns a slot into an
// environment. A class is the template of both. The island is a slot's network
// namespace with its link, address and policy. Domain packages (warm, cgroups,
// netpol, detect, snapshot) do not import each other: what they exchange is
// declared here, as values without behaviour.
package env
