package preflight

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
)

// Table renders aligned text: a line per feature, the mend below what is not
// ok, and a last line that sums up.
func (r Report) Table() string {
	var buf bytes.Buffer
	w := tabwriter.NewWriter(&buf, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "AREA\tFEATURE\tSTATE\tTIER\tDETAIL")
	missing := 0
	for _, row := range r.Rows {
		state := string(row.State)
		if row.Required && row.State == Missing {
			state = "MISSING"
			missing++
		}
		detail := oneLine(row.Detail)
		if row.Mend != "" {
			detail = strings.TrimPrefix(detail+"; mend: "+row.Mend, "; ")
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", row.Area, row.Feature, state, row.Tier, detail)
	}
	_ = w.Flush()
	if missing > 0 {
		fmt.Fprintf(&buf, "preflight: %d required features are missing\n", missing)
	} else {
		fmt.Fprintln(&buf, "preflight: every required feature is there")
	}
	return buf.String()
}

// JSON renders indented JSON, ending in a newline.
func (r Report) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	return append(b, '\n'), err
}

const maxDetail = 160

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxDetail {
		return s[:maxDetail] + "…"
	}
	return s
}
