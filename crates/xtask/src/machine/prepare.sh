# Puts Debian's kernel and what it needs to begin into the directory $1, which is kept from one run to the next. $2 is our
# knockd.
set -eu
cd "$1"
if [ ! -e vmlinuz ]; then
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1)
    rm -rf kernel
    mkdir kernel
    (cd kernel && apt-get download -q "$package" && dpkg -x ./*.deb . && rm ./*.deb)
    [ -e kernel/lib ] || ln -s usr/lib kernel/lib
    depmod -b kernel "$(ls kernel/lib/modules)"
    cp kernel/boot/vmlinuz-* vmlinuz
fi

version=$(ls kernel/lib/modules)
modules=lib/modules/$version
rm -rf initrd
mkdir -p initrd/bin initrd/sbin "initrd/$modules"
cp "$(command -v busybox)" initrd/bin/busybox
ln -s ../bin/busybox initrd/sbin/modprobe
cp init.sh initrd/init
cp sleep.sh initrd/sleep.sh
chmod +x initrd/init initrd/sleep.sh
strip -o initrd/knockd "$2"
ldd "$2" | grep -o '/[^ ]*' | while read -r file; do
    mkdir -p "initrd/$(dirname "$file")"
    cp -L "$file" "initrd/$file"
done
pwd >initrd/directory
# Those that reach this machine's files; all others come from there.
for module in virtio_pci 9pnet_virtio 9p overlay; do
    modprobe -d kernel -S "$version" --show-depends "$module"
done | sed -n 's/^insmod .*\/lib\/modules\/\([^ ]*\).*/\1/p' | sort -u | while read -r file; do
    mkdir -p "initrd/lib/modules/$(dirname "$file")"
    cp "kernel/lib/modules/$file" "initrd/lib/modules/$file"
done
cp "kernel/$modules/modules.order" "kernel/$modules/modules.builtin" "initrd/$modules"
depmod -b initrd "$version"
(cd initrd && find . | cpio -o -H newc --quiet) | gzip -1 >initrd.gz
