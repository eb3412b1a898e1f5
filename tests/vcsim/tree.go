// SPDX-License-Identifier: MIT OR Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// device is one line of a virtual machine's device tree. Unit and bus are -1 where a device has none.
type device struct {
	Kind       string `json:"kind"`
	Key        int32  `json:"key"`
	Controller int32  `json:"controller"`
	Bus        int32  `json:"bus"`
	Unit       int32  `json:"unit"`
	Bytes      int64  `json:"bytes"`
	Network    string `json:"network"`
}

type machine struct {
	GuestID     string            `json:"guest_id"`
	Hardware    string            `json:"hardware"`
	CPUs        int32             `json:"cpus"`
	MemoryMiB   int32             `json:"memory_mib"`
	Devices     []device          `json:"devices"`
	ExtraConfig map[string]string `json:"extra_config"`
}

// tree prints what the inventory says of a virtual machine, as JSON.
func tree(ctx context.Context, address, name string) error {
	client, finder, err := connect(ctx, address)
	if err != nil {
		return err
	}
	defer client.Logout(ctx)
	found, err := finder.VirtualMachine(ctx, name)
	if err != nil {
		return fmt.Errorf("cannot find the virtual machine: %w", err)
	}
	var properties mo.VirtualMachine
	collector := property.DefaultCollector(client.Client)
	if err := collector.RetrieveOne(ctx, found.Reference(), []string{"config"}, &properties); err != nil {
		return fmt.Errorf("cannot read %s: %w", name, err)
	}
	config := properties.Config
	result := machine{
		GuestID:     config.GuestId,
		Hardware:    config.Version,
		CPUs:        config.Hardware.NumCPU,
		MemoryMiB:   config.Hardware.MemoryMB,
		ExtraConfig: map[string]string{},
	}
	for _, base := range config.Hardware.Device {
		result.Devices = append(result.Devices, describe(base))
	}
	for _, option := range config.ExtraConfig {
		value := option.GetOptionValue()
		result.ExtraConfig[value.Key] = fmt.Sprint(value.Value)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(result)
}

func describe(base types.BaseVirtualDevice) device {
	virtual := base.GetVirtualDevice()
	result := device{
		Kind:       reflect.TypeOf(base).Elem().Name(),
		Key:        virtual.Key,
		Controller: virtual.ControllerKey,
		Bus:        -1,
		Unit:       -1,
	}
	if virtual.UnitNumber != nil {
		result.Unit = *virtual.UnitNumber
	}
	if controller, ok := base.(types.BaseVirtualController); ok {
		result.Bus = controller.GetVirtualController().BusNumber
	}
	if disk, ok := base.(*types.VirtualDisk); ok {
		result.Bytes = disk.CapacityInKB * 1024
	}
	if card, ok := base.(types.BaseVirtualEthernetCard); ok {
		switch backing := card.GetVirtualEthernetCard().Backing.(type) {
		case *types.VirtualEthernetCardNetworkBackingInfo:
			result.Network = backing.DeviceName
		case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
			result.Network = backing.Port.PortgroupKey
		}
	}
	return result
}
