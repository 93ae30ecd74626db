# Puts the kernel of Debian's release $3 and what it needs to begin into the directory $1, which is kept from one run to the next.
# $2 is our knockd. Nothing is installed.
set -eu
cd "$1"
if [ ! -e vmlinuz ]; then
    # This release need not be that of this machine, which tells where packages are. What apt writes for it stays here.
    rm -rf kernel apt
    mkdir -p kernel apt/lists/partial apt/cache/archives/partial
    : >apt/status
    apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' | sort -u |
        while read -r address release; do
            case $release in
                *-security) release=$3-security ;;
                *-*) continue ;;
                *) release=$3 ;;
            esac
            echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $address $release main"
        done >apt/sources.list
    of_release() {
        program=$1
        shift
        "$program" -q -o Dir::State="$PWD/apt" -o Dir::State::lists="$PWD/apt/lists" -o Dir::State::status="$PWD/apt/status" \
            -o Dir::Cache="$PWD/apt/cache" -o Dir::Etc::SourceList="$PWD/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
            -o Acquire::Languages=none "$@"
    }
    of_release apt-get update --error-on=any
    package=$(of_release apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1)
    of_release apt-get download "$package"
    dpkg -x ./"$package"_*.deb kernel
    rm -r ./"$package"_*.deb apt
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
