package plugins

import (
	"encoding/json"
	"log"
	"net/http"

	pkgHTTP "github.com/apache/apisix-go-plugin-runner/pkg/http"
	"github.com/apache/apisix-go-plugin-runner/pkg/plugin"
)

// Inspect answers with what it sees, or fails, to show what becomes of that.
type Inspect struct {
	plugin.DefaultPlugin
}

// InspectConf is the configuration of Inspect.
type InspectConf struct {
	Fail bool `json:"fail"`
}

// Seen is the answer of Inspect.
type Seen struct {
	Method     string            `json:"method"`
	Path       string            `json:"path"`
	Args       map[string]string `json:"args"`
	Headers    map[string]string `json:"headers"`
	RemoteAddr string            `json:"remote_addr"`
	RouteID    string            `json:"route_id"`
	BodyLength int               `json:"body_length"`
}

func init() { register(&Inspect{}) }

// Name is what routes call it.
func (*Inspect) Name() string { return "inspect" }

// ParseConf makes of a route's text what RequestFilter gets.
func (*Inspect) ParseConf(in []byte) (interface{}, error) {
	conf := InspectConf{}
	err := json.Unmarshal(in, &conf)
	return conf, err
}

// RequestFilter answers with JSON.
func (*Inspect) RequestFilter(conf interface{}, w http.ResponseWriter, r pkgHTTP.Request) {
	if conf.(InspectConf).Fail {
		panic("this plugin was told to fail")
	}
	routeID, err := r.Var("route_id")
	if err != nil {
		refuse(w, "cannot ask for a variable: %s", err)
		return
	}
	body, err := r.Body()
	if err != nil {
		refuse(w, "cannot ask for the body: %s", err)
		return
	}
	seen := Seen{
		Method:     r.Method(),
		Path:       string(r.Path()),
		Args:       first(r.Args()),
		Headers:    first(r.Header().View()),
		RemoteAddr: r.SrcIP().String(),
		RouteID:    string(routeID),
		BodyLength: len(body),
	}
	if err := json.NewEncoder(w).Encode(seen); err != nil {
		log.Printf("cannot write the body: %s", err)
	}
}

// refuse answers in place of a decision that cannot be made: a plugin that only returns lets the request pass.
func refuse(w http.ResponseWriter, format string, err error) {
	log.Printf(format, err)
	w.WriteHeader(http.StatusServiceUnavailable)
}

func first(values map[string][]string) map[string]string {
	found := make(map[string]string, len(values))
	for name, all := range values {
		found[name] = all[0]
	}
	return found
}
