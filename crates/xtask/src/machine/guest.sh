# Runs the tests that the file `tests` in the directory $1 names, one command in a line, and ends the machine.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export CARGO="$1/cargo.sh"
ip link set lo up
# Programs do not load these by themselves when they want a device of their kind.
for module in tun 8021q ppp_async; do modprobe "$module"; done
echo "An emulated machine with Linux $(uname -r)"
cd "$(dirname "$1")/.." || poweroff -f
sh "$1/tests"
busybox poweroff -f
