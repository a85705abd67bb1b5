package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/config"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/controllerapi"
)

// defaultConfig is read if no --config is given and it exists.
const defaultConfig = "/etc/hearth/controller.yaml"

// cli is what the commands share.
type cli struct {
	env        environment
	configPath string
}

func rootCommand(e environment) *cobra.Command {
	c := &cli{env: e}
	root := &cobra.Command{
		Use:   "controller",
		Short: "Place environments on nodes and answer callers",
		Example: `  controller run --config /etc/hearth/controller.yaml
  controller join-token create --ttl 1h
  controller apikey create --tenant team-a`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usageArgs(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(helpCommand())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w; %w", err, errUsage) })
	root.PersistentFlags().StringVar(&c.configPath, "config", "", "configuration file (default "+defaultConfig+", if it exists)")
	root.AddCommand(c.runCommand(), c.joinTokenCommand(), c.apiKeyCommand(), c.nodesCommand(), c.versionCommand())
	return root
}

// groupCommand only holds others. Cobra would answer a word that is none of them
// with the help and success; this one answers with a usage error.
func groupCommand(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fmt.Errorf("give one of the commands of %q; %w", cmd.CommandPath(), errUsage)
		},
	}
}

// helpCommand is cobra's, but for a usage error if there is no such command.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [command]", Short: "Help about any command",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("no command %q; %w", strings.Join(args, " "), errUsage)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

func usageArgs(args cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return fmt.Errorf("%w; %w", err, errUsage)
		}
		return nil
	}
}

// load reads the configuration: the file named, the default one, or none.
func (c *cli) load() (config.Controller, error) {
	host, err := config.ThisHost()
	if err != nil {
		return config.Controller{}, err
	}
	host.Pod = config.Pod{
		Namespace: c.env.getenv("POD_NAMESPACE"), Name: c.env.getenv("POD_NAME"), UID: c.env.getenv("POD_UID"), IP: c.env.getenv("POD_IP"),
	}
	path := c.configPath
	if path == "" {
		if _, err := os.Stat(defaultConfig); errors.Is(err, fs.ErrNotExist) {
			return config.DefaultController(host), nil
		}
		path = defaultConfig
	}
	cfg, err := config.LoadController(path, host)
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, fmt.Errorf("%w: %w; give another file with --config", env.ErrInvalid, err)
	}
	return cfg, err
}

func (c *cli) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Serve the Environments API to callers and the Fleet API to agents",
		Long: `Serve the Environments API to callers and the Fleet API to agents, on one TLS port.

At its first start the controller makes in its state directory: its authority
(ca.pem for callers and ca.key), an administrator's API key (admin.key), and a
token by which agents join (join-token). SIGTERM ends it in order; environments
go on, and so do claims when it is started again.

With "kubernetes" in its configuration it keeps its state in the cluster's objects
instead, and of several replicas one serves while the others stand by.`,
		Example: "  controller run --config /etc/hearth/controller.yaml",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.load()
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, c.env.stderr, nil)
		},
	}
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(c.env.stdout, version)
			return err
		},
	}
}

func (c *cli) joinTokenCommand() *cobra.Command {
	group := groupCommand("join-token", "Tokens by which agents join")
	var ttl time.Duration
	create := &cobra.Command{
		Use:     "create",
		Short:   "Make a token and print it, this once",
		Example: "  controller join-token create --ttl 30m",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.admin(cmd.Context(), func(ctx context.Context, a hearthv1connect.AdminServiceClient) error {
				resp, err := a.CreateJoinToken(ctx, &hearthv1.CreateJoinTokenRequest{Ttl: durationpb.New(ttl)})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.env.stdout, resp.GetToken())
				return err
			})
		},
	}
	create.Flags().DurationVar(&ttl, "ttl", controllerapi.DefaultJoinLife, "how long agents may join with it")
	group.AddCommand(create)
	return group
}

func (c *cli) apiKeyCommand() *cobra.Command {
	group := groupCommand("apikey", "Keys of callers")
	var tenant string
	var admin bool
	create := &cobra.Command{
		Use:   "create",
		Short: "Make a key and print it, this once",
		Example: `  controller apikey create --tenant team-a
  controller apikey create --admin`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if admin == (tenant != "") {
				return fmt.Errorf("give --tenant or --admin; %w", errUsage)
			}
			return c.admin(cmd.Context(), func(ctx context.Context, a hearthv1connect.AdminServiceClient) error {
				resp, err := a.CreateApiKey(ctx, &hearthv1.CreateApiKeyRequest{Tenant: tenant, Admin: admin})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.env.stdout, resp.GetSecret())
				return err
			})
		},
	}
	create.Flags().StringVar(&tenant, "tenant", "", "whose environments the key sees")
	create.Flags().BoolVar(&admin, "admin", false, "a key that sees every tenant")
	list := &cobra.Command{
		Use: "list", Short: "List the keys, without their secrets", Example: "  controller apikey list", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.admin(cmd.Context(), c.listKeys)
		},
	}
	remove := &cobra.Command{
		Use: "delete ID", Short: "End a key at once", Example: "  controller apikey delete 0a1b2c3d", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.admin(cmd.Context(), func(ctx context.Context, a hearthv1connect.AdminServiceClient) error {
				_, err := a.DeleteApiKey(ctx, &hearthv1.DeleteApiKeyRequest{Id: args[0]})
				return err
			})
		},
	}
	group.AddCommand(create, list, remove)
	return group
}

func (c *cli) listKeys(ctx context.Context, a hearthv1connect.AdminServiceClient) error {
	resp, err := a.ListApiKeys(ctx, &hearthv1.ListApiKeysRequest{})
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTENANT\tCREATED")
	for _, k := range resp.GetKeys() {
		tenant := k.GetTenant()
		if tenant == "" {
			tenant = "(admin)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", k.GetId(), tenant, k.GetCreatedAt().AsTime().Format(time.RFC3339))
	}
	return w.Flush()
}

func (c *cli) nodesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "nodes", Short: "List the nodes that have reported since the controller started", Example: "  controller nodes", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.admin(cmd.Context(), c.listNodes)
		},
	}
}

func (c *cli) listNodes(ctx context.Context, a hearthv1connect.AdminServiceClient) error {
	resp, err := a.ListNodes(ctx, &hearthv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tADDRESS\tSTATE\tENVIRONMENTS\tLAST HEARTBEAT")
	for _, n := range resp.GetNodes() {
		state := "ready"
		if !n.GetReady() {
			state = n.GetMessage()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", n.GetName(), n.GetAddress(), state, n.GetEnvironments(), n.GetLastHeartbeat().AsTime().Format(time.RFC3339))
	}
	return w.Flush()
}

// admin calls the running controller over its Unix socket.
func (c *cli) admin(ctx context.Context, call func(context.Context, hearthv1connect.AdminServiceClient) error) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	socket := adminSocket(cfg.StateDir)
	client := rpc.UnixClient(socket)
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = call(ctx, adminClient(client))
	if errors.Is(err, env.ErrUnavailable) && !rpc.Answered(err) {
		return fmt.Errorf("%w: is the controller running, and are you root? its socket is %s", err, socket)
	}
	return err
}

func adminClient(client *http.Client) hearthv1connect.AdminServiceClient {
	return hearthv1connect.NewAdminServiceClient(client, rpc.UnixURL, rpc.ClientOptions()...)
}

func adminSocket(stateDir string) string { return filepath.Join(stateDir, "admin.sock") }
