#!/bin/busybox sh
# knockd opens a door for 30 seconds, and the machine sleeps for 40. Prints what knockd says and when; a test reads it.
say() { read -r now rest </proc/uptime; echo "$1 at $now"; }
has() { until grep -q "$1" /said; do sleep 0.1; done; }

cat >/knockd.conf <<'END'
[door]
sequence = 1000
start_command = echo opened
cmd_timeout = 30
stop_command = read -r now rest </proc/uptime; echo "closed at $now"
END
chmod o= /knockd.conf
ip link set lo up
/knockd -v -i lo -c /knockd.conf >/said 2>&1 &
knockd=$!
has 'listening on'
nc -w 1 127.0.0.1 1000 </dev/null 2>/dev/null
has '^opened'
say opened
echo +40 >/sys/class/rtc/rtc0/wakealarm
echo mem >/sys/power/state
say awake
# Long enough for what is due, and too short for what counts only the time awake.
sleep 10
kill $knockd
wait $knockd
cat /said
