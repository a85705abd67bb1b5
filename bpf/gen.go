package bpf

// The objects are compiled by the pinned compiler (tools/clang-version) and
// committed; `make verify` rebuilds and compares them.

//go:generate go tool -modfile=../tools/go.mod bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -Wall -Werror -std=gnu11 -mcpu=v3 -I include -idirafter /usr/include/x86_64-linux-gnu" -type payload_event -type island -type island_mode -type island_stats -type policy_key -type policy_rule -type policy_flags -type flow_key -type flow -type verdict Island island.c
//go:generate go tool -modfile=../tools/go.mod bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -std=gnu11 -I include -idirafter /usr/include/x86_64-linux-gnu" -type subject -type exec_event -type connect_event -type flow_owner -type flow_tuple -type socket_holder Sensors sensors.c
//go:generate go tool -modfile=../tools/go.mod bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -std=gnu11 -I include -idirafter /usr/include/x86_64-linux-gnu" -type written Writes writes.c
