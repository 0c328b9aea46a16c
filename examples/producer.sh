#!/bin/sh
# Alert when a file system is nearly full: a producer of shell, df, awk and psql, for cron.
#
#   sh examples/producer.sh WEBHOOK_ID PATH [PERCENT]
#
# The database is that of PGGIT_REACTOR_DATABASE_URL, which other users of the machine can read on psql's command
# line: let it name a passfile (passfile=...) or rely on ~/.pgpass, and hold no password.
set -eu
webhook_id=${1:?usage: producer.sh WEBHOOK_ID PATH [PERCENT]}
path=${2:?usage: producer.sh WEBHOOK_ID PATH [PERCENT]}
limit=${3:-90}

used=$(df -P "$path" | awk 'NR == 2 { print $5 + 0 }')
if [ "$used" -lt "$limit" ]; then
    echo "$path is $used % full: nothing to tell"
    exit 0
fi
# psql itself quotes what comes from outside (:'name'), so no path can become SQL. -c would not: it takes no variables.
psql "${PGGIT_REACTOR_DATABASE_URL:?}" --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 \
    --set webhook_id="$webhook_id" --set host="$(uname -n)" --set path="$path" --set used="$used" <<'SQL'
SELECT 'queued as delivery ' || pggit.enqueue(
    p_webhook_id => :'webhook_id',
    p_body => jsonb_build_object('alert', 'disk nearly full', 'host', :'host', 'path', :'path', 'used_percent', :'used'::int),
    p_event_type => 'disk.nearly_full',
    -- Cron runs this every minute; the receiver hears of it once an hour.
    p_idempotency_key => concat_ws(':', 'disk', :'host', :'path', to_char(now(), 'YYYY-MM-DD HH24')));
SQL
