#!/bin/busybox sh
# The first process of the machine: it makes this machine's files its own, with what it writes in memory.
/bin/busybox mkdir -p /proc /sys /dev /files /memory /system
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# Before the machine has files that would not survive it.
/sleep.sh >/slept 2>&1
for module in virtio_pci 9pnet_virtio 9p overlay; do modprobe $module; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose files /files
mount -t tmpfs memory /memory
mkdir /memory/changes /memory/work
mount -t overlay -o lowerdir=/files,upperdir=/memory/changes,workdir=/memory/work overlay /system
mount -t proc proc /system/proc
mount -t sysfs sys /system/sys
mount -t devtmpfs dev /system/dev
mkdir -p /system/dev/pts
mount -t devpts pts /system/dev/pts
mount -t tmpfs run /system/run
cp /slept /system/run/slept
read -r directory </directory
mkdir -p /system/lib/modules
mount -o bind "/files$directory/kernel/lib/modules" /system/lib/modules
exec switch_root /system /bin/sh "$directory/guest.sh" "$directory"
