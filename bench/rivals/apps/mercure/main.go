// Mercure's hub on Go's own HTTP server, with its local transport and anonymous viewers. The module's own stand-alone
// program writes a line of log for each request; its build into Caddy does not, nor does this.
package main

import (
	"log"
	"net/http"
	"os"

	"github.com/dunglas/mercure"
)

func main() {
	hub, err := mercure.NewHub(
		mercure.WithAnonymous(),
		mercure.WithPublisherJWT([]byte(os.Getenv("BENCH_KEY")), "HS256"),
		mercure.WithTransport(mercure.NewLocalTransport()),
	)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(os.Getenv("BENCH_ADDRESS"), hub))
}
