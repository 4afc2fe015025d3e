// Package plugins has the plugins of this runner; each makes itself known in init.
package plugins

import (
	"encoding/json"
	"log"
	"net/http"

	pkgHTTP "github.com/apache/apisix-go-plugin-runner/pkg/http"
	"github.com/apache/apisix-go-plugin-runner/pkg/plugin"
)

// {CLASS} is the plugin {NAME}.
type {CLASS} struct {
	plugin.DefaultPlugin
}

// {CLASS}Conf is its configuration; both may be left out.
type {CLASS}Conf struct {
	Header string `json:"header"`
	Value  string `json:"value"`
}

func init() {
	if err := plugin.RegisterPlugin(&{CLASS}{}); err != nil {
		log.Fatalf("plugin {NAME}: %s", err)
	}
}

// Name is what routes call it.
func (*{CLASS}) Name() string { return "{NAME}" }

// ParseConf makes of the text that stands in a route what the filters get.
func (*{CLASS}) ParseConf(in []byte) (interface{}, error) {
	conf := {CLASS}Conf{Header: "X-Checked", Value: "yes"}
	if len(in) == 0 {
		return conf, nil
	}
	err := json.Unmarshal(in, &conf)
	return conf, err
}

// RequestFilter answers, or changes what goes on to the upstream.
func (*{CLASS}) RequestFilter(conf interface{}, w http.ResponseWriter, r pkgHTTP.Request) {
	if r.Args().Get("stop") != "" {
		log.Printf("stopped: %s", r.SrcIP()) // goes to the gateway's log
		w.WriteHeader(http.StatusForbidden)  // answers, nothing reaches the upstream
		if _, err := w.Write([]byte("stopped by {NAME}\n")); err != nil {
			log.Printf("cannot write the body: %s", err)
		}
		return
	}
	c := conf.({CLASS}Conf)
	r.Header().Set(c.Header, c.Value)
}

// ResponseFilter changes what the client gets.
func (*{CLASS}) ResponseFilter(_ interface{}, w pkgHTTP.Response) {
	w.Header().Set("X-Plugin", "{NAME}")
}
