# Unpacks ufw, firewalld and fail2ban, with all that they need, from Debian's packages into $1/root, which is kept from one run to the
# next. Nothing is installed, and nothing of this machine is used or changed.
set -eu
cd "$1"
[ ! -e root ] || exit 0
rm -rf new cache
mkdir -p new/dev new/proc new/run new/sys new/tmp new/usr cache/archives/partial
# As if no package were installed.
: >status
apt-get install -q -y --download-only --no-install-recommends -o Dir::State::status="$PWD/status" -o Dir::Cache="$PWD/cache" \
    coreutils dash dbus-daemon fail2ban firewalld grep iproute2 iptables kmod mawk nftables procps sed ufw
for package in cache/archives/*.deb; do
    dpkg -x "$package" new
done
for directory in bin lib lib64 sbin; do
    if [ -d "new/$directory" ] && [ ! -L "new/$directory" ]; then
        mkdir -p "new/usr/$directory"
        cp -a "new/$directory/." "new/usr/$directory/"
        rm -r "new/$directory"
    fi
    [ -L "new/$directory" ] || ln -s "usr/$directory" "new/$directory"
done
# What the packages would do when they are installed.
ln -sf dash new/usr/bin/sh
ln -sf mawk new/usr/bin/awk
for program in iptables ip6tables; do
    for suffix in '' -restore -save; do
        ln -sf xtables-nft-multi "new/usr/sbin/$program$suffix"
    done
done
cp new/usr/share/ufw/iptables/*.rules new/usr/share/ufw/*.init new/usr/share/ufw/ufw.conf new/etc/ufw
sed -i 's/^ENABLED=.*/ENABLED=no/' new/etc/ufw/ufw.conf
echo root:x:0:0:root:/root:/bin/sh >new/etc/passwd
echo root:x:0: >new/etc/group
rm -rf cache
mv new root
