#!/bin/sh
# Stands for cargo where nothing can be built: it says where the program is that has been built before.
while [ $# -gt 0 ]; do
    [ "$1" = --bin ] && program=$2
    shift
done
echo "{\"executable\":\"$(pwd)/target/debug/$program\"}"
