// Package uninstall takes Hearth off a cluster, in the order that loses nothing
// by accident and leaves nothing behind:
//
//  1. The classes go, so that nothing can be claimed and the pools empty.
//  2. Every Environment is deleted and waited for: the controller releases it on
//     its node, with the snapshot that its class wants.
//  3. The controller goes, then the agents.
//  4. One pod a node runs "nodeagent cleanup --all", which removes what is left
//     there, environments without objects included.
//  5. Finalizers of objects that nobody can release any more are taken off.
//  6. The objects that bear Hearth's label, the CRDs and the namespaces go.
//
// Each step can be repeated: a run that was interrupted is run again. What was
// applied beside the label "app.kubernetes.io/part-of: hearth" is left alone.
package uninstall
