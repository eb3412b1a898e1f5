// SPDX-License-Identifier: MIT OR Apache-2.0

package main

import (
	"archive/tar"
	"context"

	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/nfc"
	"github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// connect logs in, and finds the only datacenter.
func connect(ctx context.Context, address string) (*govmomi.Client, *find.Finder, error) {
	target, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	// The simulator's certificate is made for every run; there is nobody to trust and nothing to protect.
	client, err := govmomi.NewClient(ctx, target, true)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot log in: %w", err)
	}
	finder := find.NewFinder(client.Client, true)
	datacenter, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot find the datacenter: %w", err)
	}
	return client, finder.SetDatacenter(datacenter), nil
}

// member opens the first member of an OVA that is accepted; close it to release the file.
func member(path string, accept func(string) bool) (io.Reader, int64, io.Closer, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, nil, err
	}
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if err != nil {
			file.Close()
			return nil, 0, nil, fmt.Errorf("%s does not hold the member asked for: %w", path, err)
		}
		if accept(header.Name) {
			return reader, header.Size, file, nil
		}
	}
}

// importOVA does what the deploy wizard does: import spec, lease, one upload a file, completion.
func importOVA(ctx context.Context, address, name, path string, values []string) error {
	client, finder, err := connect(ctx, address)
	if err != nil {
		return err
	}
	defer client.Logout(ctx)
	pools, err := finder.ResourcePoolList(ctx, "*")
	if err != nil {
		return fmt.Errorf("cannot find a resource pool: %w", err)
	}
	datastore, err := finder.DefaultDatastore(ctx)
	if err != nil {
		return fmt.Errorf("cannot find the datastore: %w", err)
	}
	network, err := finder.Network(ctx, "VM Network")
	if err != nil {
		return fmt.Errorf("cannot find the network: %w", err)
	}

	reader, _, closer, err := member(path, func(name string) bool { return strings.HasSuffix(name, ".ovf") })
	if err != nil {
		return err
	}
	text, err := io.ReadAll(reader)
	closer.Close()
	if err != nil {
		return fmt.Errorf("cannot read the descriptor: %w", err)
	}
	envelope, err := ovf.Unmarshal(strings.NewReader(string(text)))
	if err != nil {
		return fmt.Errorf("cannot parse the descriptor: %w", err)
	}
	parameters, err := wishes(envelope, network.Reference(), name, values)
	if err != nil {
		return err
	}
	spec, err := ovf.NewManager(client.Client).CreateImportSpec(ctx, string(text), pools[0], datastore, parameters)
	if err != nil {
		return fmt.Errorf("the descriptor is refused: %w", err)
	}
	for _, fault := range spec.Error {
		return fmt.Errorf("the descriptor is refused: %s", fault.LocalizedMessage)
	}
	lease, err := pools[0].ImportVApp(ctx, spec.ImportSpec, nil, nil)
	if err != nil {
		return fmt.Errorf("the import is refused: %w", err)
	}
	info, err := lease.Wait(ctx, spec.FileItem)
	if err != nil {
		return fmt.Errorf("the lease did not become ready: %w", err)
	}
	if len(info.Items) != len(envelope.References) {
		return fmt.Errorf("%d files are asked for, the descriptor names %d", len(info.Items), len(envelope.References))
	}
	updater := lease.StartUpdater(ctx, info)
	defer updater.Done()
	for _, item := range info.Items {
		disk, size, closer, err := member(path, func(name string) bool { return name == item.Path })
		if err != nil {
			return abandon(ctx, lease, err)
		}
		err = lease.Upload(ctx, item, disk, soap.Upload{ContentLength: size})
		closer.Close()
		if err != nil {
			return abandon(ctx, lease, fmt.Errorf("cannot upload %s: %w", item.Path, err))
		}
	}
	return lease.Complete(ctx)
}

// wishes fills in what the wizard would ask: networks, and values for the properties that the descriptor declares.
func wishes(envelope *ovf.Envelope, network types.ManagedObjectReference, name string, values []string) (types.OvfCreateImportSpecParams, error) {
	parameters := types.OvfCreateImportSpecParams{
		EntityName:             name,
		OvfManagerCommonParams: types.OvfManagerCommonParams{Locale: "US"},
	}
	if envelope.Network != nil {
		for _, declared := range envelope.Network.Networks {
			parameters.NetworkMapping = append(parameters.NetworkMapping,
				types.OvfNetworkMapping{Name: declared.Name, Network: network})
		}
	}
	given := map[string]string{}
	for _, value := range values {
		key, text, found := strings.Cut(value, "=")
		if !found {
			return parameters, fmt.Errorf("%q is no KEY=VALUE", value)
		}
		given[key] = text
	}
	for _, product := range envelope.VirtualSystem.Product {
		for _, property := range product.Property {
			value, found := given[property.Key]
			if !found && property.Default != nil {
				value = *property.Default
			}
			delete(given, property.Key)
			parameters.PropertyMapping = append(parameters.PropertyMapping,
				types.KeyValue{Key: property.Key, Value: value})
		}
	}
	for key := range given {
		return parameters, fmt.Errorf("the descriptor declares no property %s", key)
	}
	return parameters, nil
}

// abandon gives a lease back after an error, so that no half-made virtual machine stays.
func abandon(ctx context.Context, lease *nfc.Lease, cause error) error {
	if err := lease.Abort(ctx, nil); err != nil {
		return fmt.Errorf("%w; aborting the lease failed too: %v", cause, err)
	}
	return cause
}
