package plugins

import (
	"encoding/json"
	"log"
	"net/http"

	pkgHTTP "github.com/apache/apisix-go-plugin-runner/pkg/http"
	"github.com/apache/apisix-go-plugin-runner/pkg/plugin"
)

// Response changes what the client gets, in a route with ext-plugin-post-resp.
type Response struct {
	plugin.DefaultPlugin
}

// ResponseConf is the configuration of Response.
type ResponseConf struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	Append  string            `json:"append"`
}

func init() { register(&Response{}) }

// Name is what routes call it.
func (*Response) Name() string { return "response" }

// ParseConf makes of a route's text what ResponseFilter gets.
func (*Response) ParseConf(in []byte) (interface{}, error) {
	conf := ResponseConf{}
	err := json.Unmarshal(in, &conf)
	return conf, err
}

// ResponseFilter changes status, headers and body.
func (*Response) ResponseFilter(conf interface{}, w pkgHTTP.Response) {
	c := conf.(ResponseConf)
	for name, value := range c.Headers {
		w.Header().Set(name, value)
	}
	if c.Status != 0 {
		w.WriteHeader(c.Status)
	}
	body := []byte(c.Body)
	if c.Append != "" {
		// only a plugin that asks for the body makes the gateway hold it back
		sent, err := w.ReadBody()
		if err != nil {
			log.Printf("cannot read the body: %s", err)
			// without this the client would get the body as if this plugin had seen it
			w.WriteHeader(http.StatusBadGateway)
			if _, err := w.Write([]byte("the body cannot be read")); err != nil {
				log.Printf("cannot write the body: %s", err)
			}
			return
		}
		body = append(append([]byte{}, sent...), c.Append...)
	}
	if len(body) > 0 {
		if _, err := w.Write(body); err != nil {
			log.Printf("cannot write the body: %s", err)
		}
	}
}
