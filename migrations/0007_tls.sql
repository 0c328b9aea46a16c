-- Pins, private authorities and client certificates of webhooks: a check of form, and what may be seen of the sealed ones.
--
-- Locks: ACCESS EXCLUSIVE on pggit.webhook for one ALTER TABLE that rewrites nothing; the check reads the table once.

ALTER TABLE pggit.webhook
    ADD COLUMN ca_fingerprints text[],
    ADD COLUMN ca_expires_at timestamptz,
    ADD COLUMN client_certificate_fingerprints text[],
    ADD COLUMN client_certificate_expires_at timestamptz,
    ADD CONSTRAINT webhook_pins_check CHECK (
        cardinality(pins) BETWEEN 1 AND 8
        AND array_position(pins, NULL) IS NULL
        AND array_to_string(pins, ' ') ~ '^sha256/[A-Za-z0-9+/]{43}=( sha256/[A-Za-z0-9+/]{43}=)*$');

COMMENT ON COLUMN pggit.webhook.pins IS
    'sha256/BASE64 of public keys, one of which the receiver''s certificate must have; null: any that it vouches for.';
COMMENT ON COLUMN pggit.webhook.sealed_ca IS 'Authorities to trust instead of the public ones, in PEM, sealed.';
COMMENT ON COLUMN pggit.webhook.sealed_client_certificate IS 'Key, certificate and chain to show the receiver, in PEM, sealed.';
COMMENT ON COLUMN pggit.webhook.ca_fingerprints IS 'SHA-256 of the certificates in sealed_ca, in hex.';
COMMENT ON COLUMN pggit.webhook.ca_expires_at IS 'When the first certificate in sealed_ca expires.';
COMMENT ON COLUMN pggit.webhook.client_certificate_fingerprints IS
    'SHA-256 of the certificates in sealed_client_certificate, in hex, the webhook''s own first.';
COMMENT ON COLUMN pggit.webhook.client_certificate_expires_at IS
    'When the first certificate in sealed_client_certificate expires.';
