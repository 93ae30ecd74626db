# Runs tests.sh in the directory $1, and ends the machine.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
# Programs do not load these by themselves when they want a device of their kind.
for module in tun 8021q ppp_async; do modprobe "$module"; done
echo "An emulated machine with Linux $(uname -r)"
sh "$1/tests.sh"
busybox poweroff -f
