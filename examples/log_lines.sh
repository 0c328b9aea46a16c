#!/bin/sh
# Alert for each line of a log that tells of trouble: any number of lines in one transaction, by COPY.
#
#   sh examples/log_lines.sh WEBHOOK_ID < server.log
#
# PostgreSQL makes the JSON, so no line can break it. About PGGIT_REACTOR_DATABASE_URL see producer.sh.
set -eu
webhook_id=${1:?usage: log_lines.sh WEBHOOK_ID < LOG}
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
# COPY's csv form with a delimiter and a quote that no line holds: a line is one field, backslashes and all.
grep -E 'ERROR|FATAL|PANIC' | tr -d '\001\002' >"$lines" || true

psql "${PGGIT_REACTOR_DATABASE_URL:?}" --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 \
    --set webhook_id="$webhook_id" --set host="$(uname -n)" --file=/dev/fd/3 3<<'SQL' <"$lines"
BEGIN;
CREATE TEMPORARY TABLE line (number bigserial, text text) ON COMMIT DROP;
\copy line (text) FROM pstdin WITH (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')
WITH queued AS (
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, event_type)
    SELECT nextval('pggit.alert_id_seq'), :webhook_id, jsonb_build_object('host', :'host', 'line', text), 'log.line'
    FROM line WHERE text <> '' ORDER BY number
    RETURNING delivery_id
)
SELECT 'queued ' || count(*) || ' deliveries' FROM queued;
COMMIT;
SQL
