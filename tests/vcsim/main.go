// SPDX-License-Identifier: MIT OR Apache-2.0

// vcsim-mt is a simulated vCenter or ESXi host, a client that imports an OVA into one, and a reader that tells what
// became of it. All three are thin layers over the govmomi library as Debian packages it.
//
//	vcsim-mt serve vpx|esx     prints its address, then runs until its standard input ends
//	vcsim-mt import URL NAME OVA [KEY=VALUE...]
//	vcsim-mt tree URL NAME     prints the virtual machine as JSON
//
// README.md beside this file says what the simulator cannot prove.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

const usage = "usage: vcsim-mt serve vpx|esx | import URL NAME OVA [KEY=VALUE...] | tree URL NAME"

func run(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New(usage)
	}
	verb, rest := arguments[0], arguments[1:]
	switch {
	case verb == "serve" && len(rest) == 1:
		return serve(rest[0])
	case verb == "import" && len(rest) >= 3:
		return importOVA(context.Background(), rest[0], rest[1], rest[2], rest[3:])
	case verb == "tree" && len(rest) == 2:
		return tree(context.Background(), rest[0], rest[1])
	}
	return errors.New(usage)
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "vcsim-mt: %v\n", err)
		os.Exit(1)
	}
}
