// Receive alerts with Go's standard library alone: net/http and crypto/hmac.
//
//	go run examples/receiver.go CERTIFICATE_FOLDER SECRET_FILE [PORT]
//
// The arguments are those of receiver_python.py. The check is Standard Webhooks 1.0. Each alert is printed once. In
// production remember the ids in your database, in the transaction that acts on the alert.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	toleranceSeconds = 300
	bodyBytesMax     = 1 << 20
	idsKeptMax       = 100_000
)

var unixSeconds = regexp.MustCompile(`^[0-9]{1,12}$`)

// keyOf returns the key of a secret: the octets behind whsec_, or the secret's own.
func keyOf(secret string) ([]byte, error) {
	if strings.HasPrefix(secret, "whsec_") {
		return base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	}
	return []byte(secret), nil
}

// isOurs tells whether one of the keys signed the octets of the body, not long ago.
func isOurs(body []byte, header http.Header, keys [][]byte, now time.Time) bool {
	id, timestamp := header.Get("webhook-id"), header.Get("webhook-timestamp")
	if id == "" || !unixSeconds.MatchString(timestamp) {
		return false
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return false
	}
	if age := now.Unix() - seconds; age > toleranceSeconds || age < -toleranceSeconds {
		return false
	}
	ours := false
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.", id, timestamp)
		mac.Write(body)
		right := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		for _, word := range strings.Split(header.Get("webhook-signature"), " ") {
			ours = hmac.Equal(right, []byte(word)) || ours // takes constant time
		}
	}
	return ours
}

// seen holds the ids of the latest deliveries.
type seen struct {
	sync.Mutex
	ids   map[string]bool
	order []string
}

// isNew tells whether this id has not been seen, and remembers it.
func (s *seen) isNew(id string) bool {
	s.Lock()
	defer s.Unlock()
	if s.ids[id] {
		return false
	}
	s.ids[id] = true
	s.order = append(s.order, id)
	if len(s.order) > idsKeptMax {
		delete(s.ids, s.order[0])
		s.order = s.order[1:]
	}
	return true
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: receiver CERTIFICATE_FOLDER SECRET_FILE [PORT]")
	}
	text, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	var keys [][]byte
	for _, secret := range strings.Fields(string(text)) {
		key, err := keyOf(secret)
		if err != nil {
			log.Fatal("a secret is not base64 after whsec_")
		}
		keys = append(keys, key)
	}
	known := &seen{ids: map[string]bool{}}
	receive := func(answer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(answer, request.Body, bodyBytesMax))
		if err != nil {
			answer.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		if request.Method != http.MethodPost || !isOurs(body, request.Header, keys, time.Now()) {
			fmt.Println("refused")
			answer.WriteHeader(http.StatusUnauthorized)
			return
		}
		// A repeat is answered like the first: what the sender wants to know is that we have it.
		if id := request.Header.Get("webhook-id"); known.isNew(id) {
			fmt.Printf("alert %s %s\n", id, body)
		}
		answer.WriteHeader(http.StatusNoContent)
	}
	port := "8443"
	if len(os.Args) > 3 {
		port = os.Args[3]
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on https://%s\n", listener.Addr())
	server := &http.Server{Handler: http.HandlerFunc(receive), ReadTimeout: 10 * time.Second, IdleTimeout: 75 * time.Second}
	folder := os.Args[1]
	log.Fatal(server.ServeTLS(listener, filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")))
}
