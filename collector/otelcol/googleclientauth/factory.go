// Package googleclientauth makes Google's client authentication available to the Collector builder, under the
// component type that the contrib distribution uses for it.
package googleclientauth

import (
	gca "github.com/GoogleCloudPlatform/opentelemetry-operations-go/extension/googleclientauthextension"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/extension"
)

// NewFactory returns the factory of the googleclientauth extension.
func NewFactory() extension.Factory {
	return extension.NewFactory(
		component.MustNewType("googleclientauth"),
		gca.CreateDefaultConfig,
		gca.CreateExtension,
		component.StabilityLevelBeta,
	)
}
