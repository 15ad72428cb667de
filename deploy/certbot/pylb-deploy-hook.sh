#!/bin/sh
# certbot keeps keys where only root reads. After a renewal this copies certificate and key to where pylb's user may read
# them; pylb notices within a second and serves them to new handshakes, without a reload.
#
#   sudo install -m 0755 pylb-deploy-hook.sh /etc/letsencrypt/renewal-hooks/deploy/pylb
#   sudo RENEWED_LINEAGE=/etc/letsencrypt/live/lb.example.net /etc/letsencrypt/renewal-hooks/deploy/pylb    # the first time
#
# In pylb.yaml:
#   webhook: {listen: "*:9000", tls: {certificate: /etc/pylb/tls/fullchain.pem, key: /etc/pylb/tls/privkey.pem}}
#
# PYLB_TLS_DIR, PYLB_GROUP: other places and groups. PYLB_LINEAGE: only this certificate, where certbot has several.
set -eu
umask 077

: "${RENEWED_LINEAGE:?certbot sets it: the directory with fullchain.pem and privkey.pem}"
to=${PYLB_TLS_DIR:-/etc/pylb/tls}
group=${PYLB_GROUP:-pylb}
if [ -n "${PYLB_LINEAGE:-}" ] && [ "$(basename "$RENEWED_LINEAGE")" != "$PYLB_LINEAGE" ]; then
  exit 0
fi

install -d -o root -g "$group" -m 0750 "$to"
for name in privkey fullchain; do
  install -o root -g "$group" -m 0640 "$RENEWED_LINEAGE/$name.pem" "$to/.$name.pem.new"
done
# The key first: until the certificate has followed, pylb finds a pair that does not match and goes on with the old one.
mv "$to/.privkey.pem.new" "$to/privkey.pem"
mv "$to/.fullchain.pem.new" "$to/fullchain.pem"
