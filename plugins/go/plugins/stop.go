// Package plugins has one plugin in each file. A plugin makes itself known in init.
package plugins

import (
	"encoding/json"
	"log"
	"net/http"

	pkgHTTP "github.com/apache/apisix-go-plugin-runner/pkg/http"
	"github.com/apache/apisix-go-plugin-runner/pkg/plugin"
)

func register(p plugin.Plugin) {
	if err := plugin.RegisterPlugin(p); err != nil {
		log.Fatalf("plugin %s: %s", p.Name(), err)
	}
}

// Stop answers every request itself.
type Stop struct {
	plugin.DefaultPlugin
}

// StopConf is the configuration of Stop.
type StopConf struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

func init() { register(&Stop{}) }

// Name is what routes call it.
func (*Stop) Name() string { return "stop" }

// ParseConf makes of a route's text what RequestFilter gets.
func (*Stop) ParseConf(in []byte) (interface{}, error) {
	conf := StopConf{}
	err := json.Unmarshal(in, &conf)
	return conf, err
}

// RequestFilter answers; once something is written, plugins behind this one do not run.
func (*Stop) RequestFilter(conf interface{}, w http.ResponseWriter, _ pkgHTTP.Request) {
	c := conf.(StopConf)
	for name, value := range c.Headers {
		w.Header().Set(name, value)
	}
	if c.Status != 0 {
		w.WriteHeader(c.Status)
	}
	if c.Body != "" {
		if _, err := w.Write([]byte(c.Body)); err != nil {
			log.Printf("cannot write the body: %s", err)
		}
	}
}
