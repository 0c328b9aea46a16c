#!/bin/sh
# Make a certificate for a receiver on this machine: FOLDER/cert.pem and FOLDER/key.pem, for localhost and 127.0.0.1.
#
# It signs itself, so a sender trusts it only when told to, by SSL_CERT_FILE=FOLDER/cert.pem. That replaces the
# authorities of the system for that process: for trying things out, not for production.
#
#   sh examples/make_certificate.sh certificate
set -eu
folder=${1:?usage: make_certificate.sh FOLDER}
mkdir -p "$folder"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext keyUsage=critical,digitalSignature,keyCertSign \
    -keyout "$folder/key.pem" -out "$folder/cert.pem" 2>"$folder/openssl.log"
echo "made $folder/cert.pem and $folder/key.pem"
