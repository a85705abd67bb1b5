package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"hearth/internal/config"
	"hearth/internal/ctrd"
	"hearth/internal/obs"
)

func imageCommand(e environment, load func() (config.Agent, error)) *cobra.Command {
	image := &cobra.Command{Use: "image", Short: "Bring images to this node", Args: usageArgs(cobra.NoArgs), RunE: showHelp}
	image.AddCommand(&cobra.Command{
		Use:   "import ARCHIVE…",
		Short: "Import OCI archives into the agent's containerd",
		Long: `Import OCI archives (tar files, as docker save or skopeo write them) into the
agent's containerd, so that classes can name their references without a
registry. It starts the managed containerd if it does not run yet.`,
		Example: `  nodeagent image import busybox.tar`,
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, archives []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			log, err := obs.NewLogger(e.stderr, cfg.Log.Format, cfg.Log.Level)
			if err != nil {
				return err
			}
			runtime, err := ctrd.Open(cmd.Context(), runtimeConfig(cfg), log)
			if err != nil {
				return err
			}
			defer runtime.Close()
			for _, path := range archives {
				refs, err := runtime.ImportFile(cmd.Context(), path)
				if err != nil {
					return err
				}
				for _, ref := range refs {
					fmt.Fprintln(e.stdout, ref)
				}
			}
			return nil
		},
	})
	return image
}
