#!/bin/sh
# The node's first process. It takes in what the lab laid out for this boot (files, network), as
# firmware and a configuration drive would; then it becomes systemd. $lab is from the command line.
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t hostfs -o "${lab:?}" none /mnt
if [ -e /mnt/files.tar ]; then tar -C / -xf /mnt/files.tar; fi
ip -batch /mnt/network
umount /mnt
exec /lib/systemd/systemd
