// SPDX-License-Identifier: MIT OR Apache-2.0

package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // govc asks for it when it logs in
)

// upload is what a client sent for one disk. The simulator itself throws the bytes away.
type upload struct {
	Path   string `json:"path"`
	Method string `json:"method"`
	Type   string `json:"type"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// counted passes a body on and remembers its length and digest.
type counted struct {
	io.ReadCloser
	digest hash.Hash
	bytes  int64
}

func (c *counted) Read(buffer []byte) (int, error) {
	count, err := c.ReadCloser.Read(buffer)
	c.digest.Write(buffer[:count])
	c.bytes += int64(count)
	return count, err
}

// serve runs a simulated inventory. The first line of standard output is its address, each further one an upload as
// JSON. It ends when standard input does, so that it cannot outlive a test that was killed.
func serve(mode string) error {
	var model *simulator.Model
	switch mode {
	case "vpx":
		model = simulator.VPX()
		// An inventory without other machines leaves nothing to be mixed up.
		model.Machine = 0
	case "esx":
		model = simulator.ESX()
		model.Machine = 0
	default:
		return fmt.Errorf("%q is no mode, there are vpx and esx", mode)
	}
	// Removes the temporary folder of the simulated datastore.
	defer model.Remove()
	if err := model.Create(); err != nil {
		return fmt.Errorf("cannot make the inventory: %w", err)
	}
	model.Service.TLS = new(tls.Config)
	model.Service.RegisterEndpoints = true
	server := model.Service.NewServer()
	defer server.Close()

	var output sync.Mutex
	say := func(line string) {
		output.Lock()
		defer output.Unlock()
		fmt.Println(line)
	}
	inner := server.Config.Handler
	// Nobody knows the address yet, so no request can see the handler being changed.
	server.Config.Handler = http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		if !strings.HasPrefix(request.URL.Path, "/nfc/") {
			inner.ServeHTTP(writer, request)
			return
		}
		body := &counted{ReadCloser: request.Body, digest: sha256.New()}
		request.Body = body
		inner.ServeHTTP(writer, request)
		line, err := json.Marshal(upload{
			Path:   request.URL.Path,
			Method: request.Method,
			Type:   request.Header.Get("Content-Type"),
			Bytes:  body.bytes,
			SHA256: hex.EncodeToString(body.digest.Sum(nil)),
		})
		if err != nil {
			line = []byte(fmt.Sprintf("%q", err.Error()))
		}
		say(string(line))
	})
	say(server.URL.String())
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
